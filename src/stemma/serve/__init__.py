"""An HTTP server with OpenAI's interface, and more for models that write no text: `stemma serve`. `app.app` is the ASGI
application of a `server.Server`, `running.serve` runs it."""
