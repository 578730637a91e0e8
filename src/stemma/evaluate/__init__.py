"""One model measured: how fast it reads and writes here (`speed`), and its scores on the tasks of EleutherAI's harness
(`harness`, for `lm_eval`)."""
