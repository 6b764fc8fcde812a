"""Run a command as the terminal's foreground job, so that Ctrl-C reaches it alone, and once.

Otherwise the terminal interrupts make too, and make then exits 130 however cleanly the program drained.
"""

import contextlib
import os
import signal
import sys

command = sys.argv[1:]
if not (os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()):
    os.execv(command[0], command)

signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a background job would be stopped for moving the terminal
signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # inherited: Ctrl-Z would stop a job that the shell does not know
forwarded = {signal.SIGTERM, signal.SIGHUP, signal.SIGINT}
signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)  # until the child is known

child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
    os.execv(command[0], command)

for number in forwarded:
    signal.signal(number, lambda number, _frame: os.kill(child, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
_, status = os.waitpid(child, 0)
with contextlib.suppress(OSError):  # the terminal may be closed
    os.tcsetpgrp(0, os.getpgrp())
code = os.waitstatus_to_exitcode(status)
sys.exit(code if code >= 0 else 128 - code)
