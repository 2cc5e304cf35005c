#!/usr/bin/env python3
"""Runs the console blocks of docs/serve.md in one shell, as they stand, and compares what they print.

    python3 tests/serve_docs.py [--skip-build]

Needs curl, python3 and port 5000. Lines behind a command are what it prints; a command without any may print what it likes. Blocks in other
languages (unit, container file, proxy) are not run. `--skip-build` takes the binary that stands in target/release.
"""
import pathlib, subprocess, sys, tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
MARK = '--- end of a command ---'


def commands(text):
    """(command, expected lines) of all console blocks, in order."""
    found, inside = [], False
    for line in text.splitlines():
        if line.startswith('```'):
            inside = line == '```console'
        elif inside and line.startswith('$ '):
            found.append((line[2:], []))
        elif inside:
            found[-1][1].append(line)
    return found


def main():
    blocks = commands((ROOT / 'docs' / 'serve.md').read_text())
    assert len(blocks) > 5, 'the search for blocks is broken'
    if '--skip-build' in sys.argv:
        blocks = [block for block in blocks if not block[0].startswith('cargo build')]
    shell = subprocess.Popen(['bash', '-m'], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        for command, expected in blocks:
            # Files that are written on the way do not stay; what is built does.
            where = f'cd {ROOT}' if command.startswith(('cargo', 'export')) else f'cd {directory}'
            shell.stdin.write(f'{where}\n{command}\necho "{MARK}$?"\n')
            shell.stdin.flush()
            printed = []
            for line in shell.stdout:
                if MARK in line:
                    # What a command prints may lack its line end.
                    rest, code = line.rstrip('\n').split(MARK)
                    printed += [rest] if rest else []
                    break
                printed.append(line.rstrip('\n'))
            good = (not expected or printed == expected) and code == '0'
            failed += not good
            print('ok    ' if good else 'FAILED', command)
            if not good:
                print(f'   expected {expected}, exit code 0\n   got {printed}, exit code {code}')
        shell.stdin.close()
        shell.wait()
    return failed > 0


if __name__ == '__main__':
    sys.exit(main())
