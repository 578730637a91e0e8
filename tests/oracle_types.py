"""The type of a case."""

from typing import Any

Case = tuple[str, Any, dict[str, Any]]  # model class, config class, config fields
