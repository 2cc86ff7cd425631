"""Collection of doctests: a module behind an extra is left out where that extra is not installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("openvino") else ["src/gossamer/runtimes/openvino.py"]
_trains = find_spec("torch") and find_spec("lightning_fabric") and find_spec("safetensors")
collect_ignore += [] if _trains else ["src/gossamer/training"]
