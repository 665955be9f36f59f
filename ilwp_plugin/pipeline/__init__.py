"""From a model to a file: plan once, quantize as often as needed, search for a target."""
