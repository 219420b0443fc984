"""Architectures of research code, written anew for inference: the names and shapes of their parameters are those of
the published files, so that these load as they are."""
