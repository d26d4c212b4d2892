"""The machine: the one cupboard for what depends on processor, C library or operating system.

- `tricks.py`: the list of tricks, what each brings, and the switch that turns them off
- `process.py`: what a process tells and changes of itself: its peak of memory, when malloc gives
  blocks back (trick `malloc`), the packages it leaves out (trick `unused_packages`)
- `locks.py`: one writer an output, whatever the operating system
- `refusals.py`: what the system refuses, and libraries in their own words, said in ours
- `ranks.py`: of several processes that train together, who has ended
- `moving.py`: renames that wait for whoever has the file open, as Windows wants it

A trick saves time or memory and changes no result beyond rounding. To see what one brings, or when
one is suspected, leave it out: SLIMTUNE_TRICKS_OFF=malloc,unused_packages in the environment
(any of them). Nothing outside this room imports fcntl, resource or msvcrt or calls mallopt, and
where they do not exist, as on Windows, the scripts work without them.
"""
