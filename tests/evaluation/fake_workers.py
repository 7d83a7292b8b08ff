"""What worker processes of tests do; importable there."""

import os
import signal
import struct
import time


def answer(connection, *arguments):
    while True:
        connection.send((connection.recv(), arguments))


def stop_before_reading(connection):
    connection.send("here")
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_half_way(connection):
    os.write(connection.fileno(), struct.pack("!i", 1000) + b"half")
    os.kill(os.getpid(), signal.SIGSTOP)


def signals(connection):
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    connection.send((signal.SIGINT in blocked, signal.SIGTERM in blocked))
    time.sleep(60)
