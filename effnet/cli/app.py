"""The commands, each in its file. What takes long to import is imported by the command that needs it."""

import typer

from effnet.cli.bench import bench
from effnet.cli.doctor import doctor
from effnet.cli.info import info
from effnet.cli.predict import predict
from effnet.cli.train import train

app = typer.Typer(
    help="Train and run EfficientNet on fused operators.", no_args_is_help=True, pretty_exceptions_enable=False
)
for command in (train, predict, info, bench, doctor):
    app.command()(command)
