//! usrbiod
