from .background import BackgroundServer as BackgroundServer, serve as serve
from .server import run_server as run_server
