"""Runs one exported file on a device and prints one line of JSON. It needs Python, numpy and the runtime.

    python worker.pyz '{"runtime": "onnxruntime", "file": "m.onnx", "mode": "time", "threads": 1}'

mode     time       load, run once, warm up, then time every run; of a file that generates text, runs of a whole
                    window first, then runs of its last token alone
         memory     load and run in a process of its own, and tell how far its peak rose above the runtime alone
         predict    run every row of `inputs` (one .npy a model input), write the outputs to `output` (a .npz); a row is
                    a whole input where it has the shape of one, else it is run at batch 1
         generate   read every row of the only one of `inputs`, tokens [rows, length], and tell the `count` likeliest
                    tokens after each, one after the other
         describe   tell the names, shapes and types of the inputs as the file has them, and of its states
         delegates  tell what the runtime can hand a model to; no file is loaded
         probe      tell what this device is; no runtime is loaded

With "leash": true it ends as soon as its standard input does, so that nothing is left running when a connection breaks.
With "wait": N it is given no more than the runtime: it imports that, says so on the socket with file descriptor N, and
gets the job from there as JSON.

This computer starts the modules where they stand. For others archive.py packs them, and those of measure/runtimes, into
one file, in which they have the names that they have here. So they import the standard library and each other only at
the top, and Python 3.9 must read them.
"""
