"""The script that trains the networks is run by hand, and alone here needs torch."""

collect_ignore = ["make_nets.py"]
