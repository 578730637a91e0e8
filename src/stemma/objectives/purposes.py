"""What a random draw is for: a part of its key, so that no two purposes share one."""

ORDER, MASK, FORCE, PAIR, SPAN = range(1, 6)
PERMUTE, PACK, TWIN = range(31, 34)
BLANK, INFILL = range(60, 62)
SAMPLE = 20
CUT, KIND, NOISE, RUN, SHUFFLE = range(6, 11)
ROLLOUT, MINIBATCH, ON_POLICY = range(21, 24)
