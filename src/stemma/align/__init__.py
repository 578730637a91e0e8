"""Alignment: from demonstrations and preferences to a model that follows."""
