"""`serve`: models behind an HTTP server."""

from __future__ import annotations

import os
from typing import Any

import click

from stemma.cli import command
from stemma.cli.complete import complete_paths
from stemma.errors import UsageError, require

PACKAGES = ("starlette", "uvicorn", "pydantic", "prometheus_client")


@command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", shell_complete=complete_paths)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 is any free one.")
@click.option("--api-key", multiple=True, envvar="STEMMA_API_KEY", metavar="KEY",
              help="Requests must bring it (also: STEMMA_API_KEY). Repeatable.")  # fmt: skip
@click.option("--adapter", multiple=True, metavar="[MODEL:]NAME=DIR", help="Served as MODEL:NAME. Repeatable.")
@click.option("--rows", type=click.IntRange(min=1), default=32, show_default=True, help="Texts written at once.")
@click.option("--queue", type=click.IntRange(min=1), default=256, show_default=True, help="Requests that may wait.")
@click.option("--kv", type=click.Choice(["f32", "bf16", "f16"]),
              help="What keys and values are kept in.  [default: as computed]")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(min=1), default=1024, show_default=True,
              help="New tokens where a request names no number.")  # fmt: skip
@click.option("--max-body", default="8MiB", show_default=True, metavar="SIZE", help="Largest request.")
@click.option("--drain", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True,
              metavar="SECONDS", help="For open requests at the end.")  # fmt: skip
@click.option("--store", default="64MiB", show_default=True, metavar="SIZE",
              help="Memory for answers of /v1/responses that are kept; 0 keeps none.")  # fmt: skip
@click.option("--allow-host", multiple=True, metavar="NAME", help="A name that the server is called by. Repeatable.")
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Pages that may ask (https://example.org). Repeatable.")
@click.option("--admin", is_flag=True, help="Models may be loaded and dropped by request; needs --api-key.")
@click.option("--feedback", type=click.Path(dir_okay=False), metavar="FILE",
              help="Keep what people think of answers on the page, as rows.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16, float16 or auto.")
@click.option(
    "--quantize", type=click.Choice(["nf4", "int8", "keep"]), help="Matrices in 4 or 8 bits, or as in the file."
)
def serve(models: tuple[str, ...], max_body: str, store: str, **options: Any) -> None:
    """Serve each MODEL (a folder, a run, a GGUF file, a hub id; NAME=PATH names it) over HTTP.

    OpenAI's interface is at /v1 (chat/completions, completions, responses, embeddings, models), a page to talk to the
    models at /, the description of all routes at /openapi.json. It listens at this machine alone, unless --host says
    otherwise. SIGTERM or Ctrl-C ends it when open requests are answered.
    """
    for package in PACKAGES:
        require(package, "stemma serve", "'stemma-lm[serve]'")
    # threads that wait for others sleep: beside busy neighbours spinning ones took five times as long. Before torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from stemma.cli.convert import byte_size
    from stemma.serve.running import serve as served
    from stemma.serve.settings import Settings

    settings = Settings(
        options["host"], options["port"], options["api_key"], options["allow_host"], options["cors"],
        options["admin"], options["rows"], options["queue"], byte_size(max_body, "--max-body"), options["max_tokens"],
        drain=options["drain"], kv=options["kv"], feedback=options["feedback"] or "",
        store=0 if store.strip() == "0" else byte_size(store, "--store"),
    )  # fmt: skip
    device = options["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    how = {"device": device, "dtype": options["dtype"], "quantize": options["quantize"]}
    served(wanted(models, options["adapter"], how), settings, device)


def wanted(models: tuple[str, ...], adapters: tuple[str, ...], how: dict[str, Any]) -> list[Any]:
    """The models of a command. Raises UsageError for names that are taken twice or are none."""
    from stemma.serve.models import Wanted

    found: dict[str, Any] = {}
    for model in models:
        name, equals, path = model.partition("=")
        one = Wanted(path, name, **how) if equals and not os.path.exists(model) else Wanted(model, **how)
        if one.called in found:
            raise UsageError(f"two models are called {one.called}; name one of them, as NAME={one.path}")
        found[one.called] = one
    own: dict[str, dict[str, str]] = {name: {} for name in found}
    for adapter in adapters:
        name, equals, path = adapter.partition("=")
        base, colon, name = name.rpartition(":")
        if not (equals and name and path):
            raise UsageError(f"--adapter {adapter} is not NAME=DIR or MODEL:NAME=DIR")
        if not colon and len(found) > 1:
            raise UsageError(f"--adapter {adapter}: there are several models; say whose it is, as MODEL:{adapter}")
        base = base if colon else next(iter(found))
        if base not in own:
            raise UsageError(f"--adapter {adapter}: no model is called {base}; there are {', '.join(own)}")
        own[base][name] = path
    return [Wanted(one.path, one.name, **how, adapters=own[name]) for name, one in found.items()]
