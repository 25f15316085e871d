"""What every room stands on: errors, plug-in registry, files, devices, seeds, progress. Imports nothing of ours."""
