"""Contents that make a folder (the mark) if anything that reads them runs what they hold."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Payload:
    """An object whose unpickling makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def _saved(value: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def _yaml(mark: Path) -> bytes:
    return f"!!python/object/apply:os.mkdir ['{mark}']\n".encode()


def _yaml_key(mark: Path) -> bytes:
    return f"recipe.lr: !!python/object/apply:os.mkdir ['{mark}']\ntrain: {{budget: 1 steps}}\n".encode()


def template(mark: Path) -> str:
    """A Jinja template that leaves its sandbox if it is in none."""
    return (
        f"{{{{ cycler.__init__.__globals__.os.mkdir('{mark}') }}}}"
        f"{{{{ self.__init__.__globals__.__builtins__.__import__('os').mkdir('{mark}') }}}}"
        f"{{% for c in ''.__class__.__mro__[1].__subclasses__() %}}{{% if c.__name__ == 'catch_warnings' %}}"
        f"{{{{ c()._module.__builtins__['__import__']('os').mkdir('{mark}') }}}}{{% endif %}}{{% endfor %}}"
    )


def _json(mark: Path) -> bytes:
    """Keys by which other programs find code, and a template."""
    code = f"__import__('os').mkdir({str(mark)!r})"
    odd = {
        "py/object/apply": "os.mkdir", "py/reduce": [{"py/type": "os.mkdir"}, {"py/tuple": [str(mark)]}],
        "__reduce__": ["os.mkdir", [str(mark)]], "__class__": "os.mkdir", "_target_": "os.mkdir", "path": str(mark),
        "auto_map": {"AutoConfig": "payload.C", "AutoModelForCausalLM": "payload.M", "AutoTokenizer": ["payload.T", None]},
        "trust_remote_code": True, "custom_pipelines": {"x": {"impl": "payload.P"}}, "eval": code, "kind": code,
        "chat_template": template(mark), "tokenizer_class": "payload.T", "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"], "type": "payload.Pooling",
    }  # fmt: skip
    return json.dumps(odd).encode()


def _python(mark: Path) -> bytes:
    return f"import os\nos.mkdir({str(mark)!r})\n".encode()


KINDS: dict[str, Callable[[Path], bytes]] = {
    "pickle": lambda mark: pickle.dumps(Payload(mark)),
    "pickle-0": lambda mark: pickle.dumps(Payload(mark), protocol=0),
    "torch": lambda mark: _saved({"x": Payload(mark)}),
    "torch-whole": lambda mark: _saved(Payload(mark)),
    "torch-old": lambda mark: _saved({"x": Payload(mark)}, _use_new_zipfile_serialization=False),
    "yaml": _yaml,
    "yaml-key": _yaml_key,
    "json": _json,
    "jinja": lambda mark: template(mark).encode(),
    "python": _python,
}
