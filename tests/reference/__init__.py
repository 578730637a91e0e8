"""Short implementations of what transformers does not have, written for these tests from papers alone."""
