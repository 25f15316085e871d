"""Model sources. One file each: `Options`, and `build(options)` that gives a `luthier.model.hub.Hub`."""
