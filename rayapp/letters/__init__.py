"""`rayapp dlq`: look at dead letters, try them again, or put them aside.

    topic.py   reads the dead-letter topic        letter.py   copies under one id become one letter (pure)
    states.py  what people did, in the database   select.py   which letters are meant, and counts (pure)
    judge.py   what parser and decoder say today  replay.py   records out, reports in, then the state

The topic is immutable and keeps everything; a letter's state is a row beside it.
"""
