"""Started in the background, a test run may ignore Ctrl-C, and so would every program it starts;
the tests that send Ctrl-C to a program need it heard."""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
