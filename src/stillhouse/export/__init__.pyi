from .hub_upload import (
    Upload as Upload,
    Uploaded as Uploaded,
    hub_endpoint as hub_endpoint,
    plan_upload as plan_upload,
    upload_files as upload_files,
)
from .write import ExportedFile as ExportedFile, export as export, export_gguf as export_gguf
