"""What requests and answers look like: pydantic models, from which the OpenAPI document is made too."""
