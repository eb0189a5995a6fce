"""Backdoor distillation: the method (`losses`, `step`), the run (`loop`), both encoders."""
