"""`rayapp replay`: read a range of the readings topic into the table again, beside live traffic.

    plan.py   which offsets are meant, never beyond the ledger (pure)      run.py   read, decode, absorb
    jobs.py   a job's rows: position and counts move with the readings     cli.py   flags, progress, exit codes

For rows that somebody deleted, or a table that was restored from a backup.
What is right already stays as it is, and the ledger is not touched.
"""
