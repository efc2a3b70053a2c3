"""Programs that run inside engine pods, as text: the operator writes them into the pod template.

They run with nothing but a Python 3.8+ interpreter or a POSIX shell, and share no code with the operator. Every byte
is part of the pod template, so an edit here restarts every engine: the goldens in tests/golden/deploy make that
visible.
"""
