"""Backdoor distillation: the method (`losses`, `step`), the run (`loop`), and what is defended."""
