"""Texts of keys and values for the benches of long rows, and small models that have learnt to look values up."""
