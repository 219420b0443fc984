"""docs/quality.md: `run` measures, `results` keeps it in records/, `ratios` compares, `page` writes."""
