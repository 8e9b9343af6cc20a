-- Ends every publication. No result row; the parts of the same script before it take effect together.
-- Parameters: none. Running the script again changes nothing: its first part asks the run row.
COMMIT TRANSACTION;
