#!/bin/sh
# Put recordings of five languages into sounds/, from packages of Debian; nothing is installed.
set -eu
mkdir -p packages sounds
cd packages
for language in en es fr it ru; do
    apt-get download "asterisk-core-sounds-$language-wav"
    dpkg -x asterisk-core-sounds-"$language"-wav_*.deb .
    ln -sfn "$PWD"/usr/share/asterisk/sounds/"$language"_* "../sounds/$language"
done
