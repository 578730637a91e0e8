"""MASS: exact counts. (No class of the reference library has it: `tests/test_mass.py` holds it to one of its own.)"""

COUNTS = {
    "mass-base-uncased": 123_469_824,  # the 123M of the publisher
    "mass-middle-uncased": 208_666_624,  # the 208M of the publisher
}
