"""The catalogue of distillation methods, one file for each seam they change."""
