"""Writes an example of the MLflow client's own documentation, as it stands there, into
a file: examples.py MODULE NAME NUMBER FILE [LINE…], where lines go before the example.

The scripts that tests run are so those of the pinned package, unmodified.
"""

import importlib
import inspect
import pathlib
import sys
import textwrap


def examples(text):
    """What is indented below `.. code-block:: python`, without the directive's options."""
    lines = inspect.cleandoc(text).splitlines()
    for start, line in enumerate(lines):
        if line.strip() not in (".. code-block:: python", ".. testcode::"):
            continue
        depth = len(line) - len(line.lstrip())
        block = []
        for inner in lines[start + 1:]:
            if inner.strip() and len(inner) - len(inner.lstrip()) <= depth:
                break
            block.append(inner)
        while block and (not block[0].strip() or block[0].strip().startswith(":")):
            block.pop(0)
        yield textwrap.dedent("\n".join(block)) + "\n"


module, name, number, file, *before = sys.argv[1:]
thing = importlib.import_module(module)
for part in name.split("."):
    thing = getattr(thing, part)
script = list(examples(thing.__doc__))[int(number)]
pathlib.Path(file).write_text("".join(line + "\n" for line in before) + script)
