"""Load, measure, judge: the bench, its judge, and the demo.

sent        the simulator's ledger as columns, and the readings it promises
judge       pure: what was sent against what arrived; able to fail, and tested for it
evidence    what arrived: rows, dead letters and ledger, read from the servers
latency     intended send time to commit, by two independent witnesses
processes   CPU and memory of every process that takes part
simulator   build and run the gateway simulator
session     one pipeline on real servers, from nothing to nothing; tests use it too
measure     the bench; demo: the demo; cli: both as commands
"""
