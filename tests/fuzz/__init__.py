"""Fuzzing by meaning: every reader of files is handed files that are almost right.

    python -m tests.fuzz                      all readers, 20,000 mutants,
    two processes at a time: `make fuzz`
    python -m tests.fuzz READER FIRST COUNT   mutants FIRST to FIRST + COUNT of one reader, as JSON

Mutant number i of a reader depends on i alone, so one that is told to be wrong can be looked at again. Right
is success or a UserError of one clear line; see `frame` for what is wrong.
"""
