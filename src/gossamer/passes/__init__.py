"""One file a graph edit. The folder is the registry: a plan's `method` is the name of a module here."""
