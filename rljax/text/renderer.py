"""The process that renders chat templates: reads requests from stdin and writes answers to stdout, one JSON per line.

It runs as a script without this package, so that it starts quickly and holds nothing that a template could reach. Each
request is {template, variables, seconds, bytes}; its answer is {text} or {error}. The kernel ends the process if a
request needs more than `seconds` of CPU time.
"""

import contextlib
import datetime
import functools
import json
import resource
import signal
import sys

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_CHARACTERS = 10**7


class _Generation(Extension):
    """`{% generation %} … {% endgeneration %}`, which encloses what an assistant wrote."""

    tags = {"generation"}  # noqa: RUF012  (as in jinja2)

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class _PublicNamespace(Namespace):
    """`namespace(…)` of a template, without names that begin with an underscore."""

    def __init__(*args, **kwargs):  # `self` may be a keyword
        for name in dict(*args[1:], **kwargs):
            _check_public(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name, value):
        _check_public(name)
        super().__setitem__(name, value)


class _Dict:
    """`dict(…)` of a template, without the attributes of the type."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        return dict.fromkeys(*args, **kwargs)


def _check_public(name):
    if str(name).startswith("_"):
        raise SecurityError(f"namespace attribute {name!r}: expected a name without an underscore at its start")


def _raise(message):
    raise TemplateError(message)


def _tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.cache
def _compiled(template):
    """`template` compiled with the settings and functions of `transformers`."""
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    env.globals["dict"] = _Dict()
    env.globals["namespace"] = _PublicNamespace
    return env.from_string(template)


def _answer(template, variables):
    """{text} or {error}."""
    try:
        text = _compiled(template).render(variables)
    except TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}
    except TemplateError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "needs too much memory"}
    except RecursionError:
        return {"error": "recurses too deeply"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if len(text) > MAX_CHARACTERS:
        return {"error": f"wrote {len(text)} characters: expected at most {MAX_CHARACTERS}"}
    return {"text": text}


def _limit(seconds, size):
    """Ends this process after `seconds` of CPU time, counted from now, and limits its memory to `size` bytes."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def main():
    for line in sys.stdin:
        request = json.loads(line)
        _limit(request["seconds"], request["bytes"])
        answer = json.dumps(_answer(request["template"], request["variables"]))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
