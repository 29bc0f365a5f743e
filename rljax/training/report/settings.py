"""Title, algorithm and settings in a report, from a config as returned by `describe`."""

from collections.abc import Mapping

from rljax.training.report.template import text


def header(title: str, config: Mapping, status: str) -> str:
    """Title, status, and the algorithm as its functions."""
    finished = " finished" if status == "finished" else ""
    place = f"<span><code>{text(config['run'])}</code></span>" if "run" in config else ""
    algorithm = config.get("algorithm", "")
    if isinstance(algorithm, Mapping) and algorithm.get("type") == "PolicyGradient":
        functions = {name: value for name, value in algorithm.items() if name != "type" and value is not None}
    else:
        functions = {"algorithm": algorithm} if algorithm else {}
    lines = (f"<li>{text(name)} <code>{text(expression(value))}</code></li>" for name, value in functions.items())
    return (
        f'<div class="top"><span class="status{finished}">{text(status)}</span>{place}</div><h1>{text(title)}</h1>'
        f'<ul class="algorithm">{"".join(lines)}</ul>'
    )


def name_of(described: object) -> str:
    if isinstance(described, Mapping):
        return str(described.get("type") or name_of(described.get("function", "?")))
    return str(described).split(".<locals>")[0]


def expression(described: object) -> str:
    """A described value as the Python expression that creates it.

    >>> expression({"function": "clip", "bound": [{"low": 0.2, "high": 0.28}]})
    'clip(low=0.2, high=0.28)'
    >>> expression({"function": "chain", "bound": ["cumulative", {"function": "clip", "bound": [{"low": 0.2}]}, {}]})
    'chain(cumulative, clip(low=0.2))'
    """
    if isinstance(described, list):
        return "[" + ", ".join(map(expression, described)) + "]"
    if not isinstance(described, Mapping):
        return name_of(described)
    if "function" in described:
        bound = described.get("bound") or []
        arguments = [a for item in ([bound] if isinstance(bound, Mapping) else bound) for a in _arguments(item)]
        return f"{name_of(described['function'])}({', '.join(arguments)})"
    fields = [f"{name}={expression(value)}" for name, value in described.items() if name != "type"]
    return f"{described['type']}({', '.join(fields)})" if "type" in described else f"dict({', '.join(fields)})"


def _arguments(item: object) -> list[str]:
    """The arguments in an entry of `bound`, which is a positional argument or a mapping of keyword arguments."""
    if isinstance(item, Mapping) and not item.keys() & {"function", "type"}:
        return [f"{name}={expression(value)}" for name, value in item.items()]
    return [expression(item)]


def flat(config: Mapping, prefix: str = "") -> dict[str, str]:
    """The fields by their dotted names, as on the command line.

    >>> flat({"type": "Config", "seed": 0, "optimizer": {"type": "OptimizerConfig", "b1": 0.9}})
    {'seed': '0', 'optimizer.b1': '0.9'}
    """
    fields = {}
    for name, value in config.items():
        if name == "type":
            continue
        if isinstance(value, Mapping) and "function" not in value:
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = expression(value)
    return fields


def settings(config: Mapping, versions: Mapping[str, str], device: str) -> str:
    """The resolved config, and the versions and device, each in a collapsed section."""
    folded = {"Resolved config": flat(config), "Versions and device": {"device": device, **versions}}
    return "<h2>Settings</h2>" + "".join(
        f'<details class="card"><summary>{title}</summary>{_table(fields)}</details>'
        for title, fields in folded.items()
    )


def _table(fields: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in fields.items())
    return f'<table class="fields">{rows}</table>'
