"""Where models come from, how their folders are checked, loaded, quantized and adapted, and how they generate."""
