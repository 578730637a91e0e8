"""Short forward passes of models that have no other reference, written from papers and released code with plain tensors:
one row at a time, tensors by the names of the publisher's files, nothing from `stemma`."""
