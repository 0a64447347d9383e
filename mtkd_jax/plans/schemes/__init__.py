"""The named plans: what is trained after what.

A plan is a function `(config, split, *, ...) -> Plan`; `config.plan` is its address, such as
"born_again(generations=5)". Each trains teachers and `students.modes` as ever, so that what it adds stands in
one table with the students that all teachers teach directly, and with the baseline. What it adds is there for
each of `students.models`.
"""
