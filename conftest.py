"""Collection of doctests: a module behind an extra is left out where that extra is not installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("openvino") else ["src/gossamer/runtimes/openvino.py"]
collect_ignore += [] if find_spec("torch") else ["src/gossamer/training"]
