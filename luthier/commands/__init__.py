"""One file for each verb: a recipe that reads top to bottom. `luthier.cli` imports the one it needs."""
