-- A workshop that lends instruments: who made them, who plays them, who has rented what.
CREATE TABLE maker (
  maker_id INTEGER PRIMARY KEY,
  name TEXT,
  city TEXT,
  founded INTEGER
);
CREATE TABLE instrument (
  instrument_id INTEGER PRIMARY KEY,
  kind TEXT,
  maker_id INTEGER REFERENCES maker (maker_id),
  year INTEGER,
  price REAL
);
CREATE TABLE player (
  player_id INTEGER PRIMARY KEY,
  name TEXT,
  city TEXT,
  age INTEGER
);
CREATE TABLE rental (
  rental_id INTEGER PRIMARY KEY,
  instrument_id INTEGER REFERENCES instrument (instrument_id),
  player_id INTEGER REFERENCES player (player_id),
  month TEXT,
  days INTEGER
);

INSERT INTO maker VALUES
  (1, 'Anna Brandt', 'Mittenwald', 1987),
  (2, 'Li Mu', 'Suzhou', 1994),
  (3, 'Pietro Galli', 'Cremona', 1921),
  (4, 'Juan Ortega', 'Granada', 1960),
  (5, 'Wang Qin', 'Suzhou', 2005),
  (6, 'Clara Voss', 'Berlin', 2011);

INSERT INTO instrument VALUES
  (1, 'violin', 1, 1990, 5200), (2, 'violin', 3, 1925, 21000), (3, 'viola', 1, 2003, 6100),
  (4, 'cello', 3, 1931, 34000), (5, 'cello', 6, 2015, 8800), (6, 'guitar', 4, 1968, 4300),
  (7, 'guitar', 4, 1999, 2900), (8, 'guitar', 6, 2018, 1900), (9, 'lute', 1, 2010, 3700),
  (10, 'pipa', 2, 1998, 2600), (11, 'pipa', 5, 2012, 3400), (12, 'guqin', 5, 2009, 7200),
  (13, 'guqin', 2, 2001, 9800), (14, 'violin', 6, 2016, 3100), (15, 'lute', 4, 1975, 5400);

INSERT INTO player VALUES
  (1, 'Mei Chen', 'Shanghai', 19), (2, 'Tom Becker', 'Berlin', 34), (3, 'Sara Lind', 'Oslo', 27),
  (4, 'Paul Roy', 'Berlin', 61), (5, 'Hua Zhang', 'Shanghai', 45), (6, 'Nora Feld', 'Vienna', 23),
  (7, 'Ivo Petrov', 'Vienna', 52), (8, 'Yan Liu', 'Beijing', 31), (9, 'Emma Stone', 'Oslo', 16),
  (10, 'Max Huber', 'Berlin', 40);

INSERT INTO rental VALUES
  (1, 1, 2, 'January', 20), (2, 4, 4, 'January', 31), (3, 10, 1, 'February', 12), (4, 6, 3, 'February', 28),
  (5, 11, 5, 'March', 7), (6, 12, 8, 'March', 31), (7, 2, 6, 'March', 14), (8, 9, 2, 'April', 30),
  (9, 3, 4, 'April', 9), (10, 7, 3, 'May', 25), (11, 10, 5, 'May', 18), (12, 13, 1, 'June', 30),
  (13, 5, 6, 'June', 10), (14, 14, 10, 'June', 22);
