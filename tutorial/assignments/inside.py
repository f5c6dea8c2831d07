"""What runs in the jail: one task of one submission.  Standard library and numpy only, beside the student's file.

    stdin    a line of JSON, then the inputs of all cases
    stdout   for each case an answer, as raw bytes; what the student prints goes nowhere

This program shares its process with the student's code, which may therefore forge whatever it sends.  It gains
nothing: no expected value is in this process, nor in any other before this one has ended.

An answer is one byte, 0, and for each output of the task its shape, as int64, and its bytes.  The reader
(`read_answers`) knows number, dtype and dimensions of the outputs already.  Instead of an answer stand the byte 1, the
kind of an exception (its place in EXCEPTIONS) and the line of the student's file that raised it, both as int32.  The
byte 2 instead of 1 says that it was raised as the file was imported; no case was tried then.
"""

import builtins
import json
import os
import sys
import types

EXCEPTIONS = ("BaseException", *sorted(name for name, value in vars(builtins).items()
              if isinstance(value, type) and issubclass(value, BaseException) and name != "BaseException"))  # fmt: skip


# --- inputs: nested lists, tuples, dictionaries, numbers, texts and arrays, as JSON and raw bytes -------------------


def encode(value, blobs):
    """The JSON form of a value; arrays are appended to `blobs`."""
    import numpy as np

    if isinstance(value, np.ndarray):
        blobs.append(np.ascontiguousarray(value).tobytes())
        return {"array": value.dtype.str, "shape": value.shape}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [encode(item, blobs) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key, blobs), encode(item, blobs)] for key, item in value.items()]}
    return value


def decode(value, take):
    """A fresh copy of what was encoded; take(n) gives the next n bytes."""
    import numpy as np

    if not isinstance(value, dict):
        return value
    if "array" in value:
        dtype, shape = np.dtype(value["array"]), value["shape"]
        size = dtype.itemsize
        for length in shape:
            size *= length
        return np.frombuffer(take(size), dtype).reshape(shape).copy()
    if "dict" in value:
        return {decode(key, take): decode(item, take) for key, item in value["dict"]}
    items = [decode(item, take) for item in value.get("list", value.get("tuple"))]
    return tuple(items) if "tuple" in value else items


def taker(data):
    """take(n): the next n bytes; EOFError when there are not so many."""
    position = 0

    def take(size):
        nonlocal position
        if position + size > len(data):
            raise EOFError
        position += size
        return data[position - size : position]

    return take


# --- answers --------------------------------------------------------------------------------------------------------


def as_arrays(result, outputs):
    """What a function returned, as one array for each (name, dtype, dimensions) of outputs.

    TypeError for another number of values, or for values that would lose something as this dtype (a float as an
    integer, a complex number as a float); ValueError for another number of dimensions.
    """
    import numpy as np

    values = result if len(outputs) > 1 else (result,)
    if not isinstance(values, (tuple, list)) or len(values) != len(outputs):
        raise TypeError
    arrays = []
    for value, (_, dtype, dimensions) in zip(values, outputs, strict=True):
        array = np.asarray(value)
        if array.size == 0:
            array = array.astype(dtype)  # [] is an array of floats
        array = array.astype(dtype, casting="same_kind")
        if array.ndim != dimensions:
            raise ValueError
        arrays.append(np.ascontiguousarray(array).reshape(array.shape))
    return arrays


def kind_and_line(error, file):
    """The built-in exception that this one is, and the last line of `file` that it passed through.

    Neither the message nor a name of the student's choice leaves the jail, as both might hold inputs.
    """
    kind = next(EXCEPTIONS.index(cls.__name__) for cls in type(error).__mro__ if cls.__name__ in EXCEPTIONS)
    line = (error.lineno or 0) if isinstance(error, SyntaxError) and error.filename == file else 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return kind, line


def limit(limits):
    """Limits that the process cannot raise again.  `memory` is what it may take beyond what it has now, in bytes."""
    import resource

    def lower(name, soft, hard=None):
        which = getattr(resource, name)
        ceiling = resource.getrlimit(which)[1]
        wanted = (soft, soft if hard is None else hard)
        if ceiling != resource.RLIM_INFINITY:
            wanted = tuple(min(value, ceiling) for value in wanted)
        resource.setrlimit(which, wanted)

    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
        prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: no setuid program gives rights back
        prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: a grader that is killed takes this process with it
    except (ImportError, OSError, AttributeError):
        pass  # not Linux
    lower("RLIMIT_CPU", limits["cpu"], limits["cpu"] + 1)
    lower("RLIMIT_FSIZE", limits["file"])
    lower("RLIMIT_NOFILE", limits["files"])
    lower("RLIMIT_NPROC", limits["processes"])
    lower("RLIMIT_CORE", 0)
    has = 0
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", encoding="ascii") as file:
            has = int(file.read().split()[0]) * resource.getpagesize()
    lower("RLIMIT_AS", has + limits["memory"])


def failure(error, file, kind=b"\1"):
    import numpy as np

    return kind + np.array(kind_and_line(error, file), np.int32).tobytes()


def frames(job, data, source):
    """The bytes to send, one piece for each case: imports the student's file, then answers."""
    try:
        student = types.ModuleType(job["file"].removesuffix(".py"))
        sys.modules[student.__name__] = student
        exec(compile(source, job["file"], "exec"), vars(student))
    except BaseException as error:  # SystemExit as well
        yield failure(error, job["file"], b"\2")
        return
    yield from answers(job, data, student)


def answers(job, data, student):
    """The bytes of each case's answer, of a module that is there already."""
    import numpy as np

    scope, take = {}, taker(data)
    exec(job["drive"], scope)
    for case in job["cases"]:
        inputs = decode(case, take)
        try:
            with np.errstate(all="ignore"):
                arrays = as_arrays(scope["drive"](student, *inputs), job["outputs"])
            answer = b"\0" + b"".join(np.array(array.shape, np.int64).tobytes() + array.tobytes() for array in arrays)
        except BaseException as error:
            answer = failure(error, job["file"])
        yield answer


def main():
    pipe = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    data = b""
    while chunk := os.read(0, 1 << 20):
        data += chunk
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    head, _, data = data.partition(b"\n")
    job = json.loads(head)
    if job["numpy"]:
        sys.path.insert(0, job["numpy"])
    import numpy as np

    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), job["file"]), "rb") as file:
        source = file.read()
    np.ones((256, 256)) @ np.ones((256, 256))  # BLAS takes its 32 MiB of buffers now, not from the student
    limit(job["limits"])
    for frame in frames(job, data, source):
        while frame:
            frame = frame[os.write(pipe, frame) :]


if __name__ == "__main__":
    main()
    os._exit(0)  # whatever threads the student has left
