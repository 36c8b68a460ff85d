"""The four trainings in plain PyTorch, as the field's code usually has them: what `prorec_fast.fit` is timed against.

Written from the papers' formulas. It does nothing that is slow for its own sake: what costs time here are habits met in
most released code, and each file says which ones it keeps.
"""
