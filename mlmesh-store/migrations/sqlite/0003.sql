-- Version 3. What people write on a run: JSON with its tags and its note; NULL for neither.
ALTER TABLE runs ADD COLUMN labels TEXT;
