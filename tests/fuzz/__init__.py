"""Fuzzing by meaning: every reader of files is given files that are almost right.

    python -m tests.fuzz                      all readers, 20,000 mutants,
    two processes at a time: `make fuzz`
    python -m tests.fuzz READER FIRST COUNT   mutants FIRST to FIRST + COUNT of one reader, as JSON

Mutant number i of a reader depends on i alone, so a reported mutant can be reproduced. The right outcome is
success or a UserError of one clear line; `frame` lists what is wrong.
"""
