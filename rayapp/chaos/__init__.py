"""Chaos: real servers, real traffic, faults drawn from a seed, and a judge that is proven to be able to fail.

plan      which fault when, from a seed                     (pure)
faults    how each kind is done to a running pipeline
proxy     the network in between: cut, delay, blackhole     (a process of its own)
reader    what was seen once must stay
recovery  how long p99 was above a second after each fault  (pure)
run       one chaos run from servers to verdict
planted   bugs put into the pipeline on purpose
prove     each planted bug must be found by its script
"""
