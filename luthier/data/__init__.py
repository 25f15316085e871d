"""From files to the exact tokens that train: sources, formats, templates, rendering, encoders, packing, report."""
