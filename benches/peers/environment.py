"""The Python that the peers live in: they are installed from PyPI into target/peers, once.

PEERS_PYTHON names another Python that has them already.
"""
import importlib, importlib.metadata, importlib.util, os, pathlib, subprocess, sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOME = ROOT / 'target' / 'peers'
PACKAGES = ['ctranslate2==4.8.*', 'transformers==4.57.*', 'torch==2.9.*', 'sentencepiece', 'protobuf', 'sacremoses', 'sacrebleu']
ENTERED = 'BEAMFUSE_PEERS_ENTERED'


def enter():
    """Goes on in that Python: runs the calling script again under it, unless it has been already."""
    HOME.mkdir(parents=True, exist_ok=True)
    if os.environ.get(ENTERED):
        return
    python = pathlib.Path(os.environ.get('PEERS_PYTHON', HOME / 'venv' / 'bin' / 'python'))
    if not python.exists():
        if 'PEERS_PYTHON' in os.environ:
            sys.exit(f'PEERS_PYTHON: there is no {python}')
        subprocess.run([sys.executable, '-m', 'venv', HOME / 'venv'], check=True)
        subprocess.run([python, '-m', 'pip', 'install', '-q', *PACKAGES], check=True)
    os.environ[ENTERED] = '1'
    os.execv(python, [str(python), *sys.argv])


def need(module, requirement):
    """Installs what few runs want, unless it is there already."""
    if importlib.util.find_spec(module):
        return
    if 'PEERS_PYTHON' in os.environ:
        sys.exit(f'PEERS_PYTHON: {sys.executable} lacks {requirement}')
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', requirement], check=True)
    importlib.invalidate_caches()


def versions(*packages):
    return {package: importlib.metadata.version(package) for package in packages}
